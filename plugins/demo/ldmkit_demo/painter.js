// The body of a function of (element, trigger, props): draws one input of the page and keeps props.value, JSON or "" for nothing.
const root = element.querySelector('.painter');
const facts = JSON.parse(root.dataset.facts);
const make = (tag, more = {}, ...children) => {
  const made = Object.assign(document.createElement(tag), more);
  made.append(...children);
  return made;
};
const send = (value) => {
  props.value = value === null ? '' : JSON.stringify(value);
  trigger('input');
};
const base64 = (bytes) => {
  let text = '';
  for (let i = 0; i < bytes.length; i += 8192) text += String.fromCharCode(...bytes.subarray(i, i + 8192));
  return btoa(text);
};
const message = make('p', { className: 'painter-message', role: 'status' });
let chosen = facts.brushes[0];

function swatches() {
  const list = make('div', { className: 'swatches', role: 'group' });
  list.setAttribute('aria-label', `${facts.slot}: what is painted`);
  for (const brush of facts.brushes) {
    const dot = make('span', { className: 'dot' });
    dot.style.background = brush.colour;
    const button = make('button', { type: 'button', className: 'swatch' }, dot, brush.name);
    button.setAttribute('aria-pressed', brush === chosen);
    button.onclick = () => {
      chosen = brush;
      for (const other of list.children) other.setAttribute('aria-pressed', other === button);
    };
    list.append(button);
  }
  return list;
}

const tool = (text, action) => make('button', { type: 'button', className: 'tool', textContent: text, onclick: action });

// A canvas of one byte a pixel: class ids, or a mask.
function paintedCanvas(height, width, ground, alpha) {
  const ids = new Uint8Array(height * width).fill(ground);
  const canvas = make('canvas', { height, width, className: 'canvas', tabIndex: 0 });
  canvas.setAttribute('role', 'img');
  canvas.setAttribute('aria-label', `${facts.slot}: a canvas to paint on, ${width} by ${height} pixels`);
  const context = canvas.getContext('2d');
  const colours = new Map(facts.brushes.map((brush) => [brush.id, rgba(brush.colour)]));
  const past = [];
  const size = make('input', { type: 'range', min: 1, max: Math.max(3, Math.round(Math.min(height, width) / 3)),
    value: Math.max(1, Math.round(Math.min(height, width) / 8)) });
  size.setAttribute('aria-label', 'brush size');
  let changed = () => {};

  function rgba(colour) {
    const number = (at) => parseInt(colour.slice(at, at + 2), 16);
    return [number(1), number(3), number(5), colour.length > 7 ? number(7) : 255];
  }
  function show() {
    const image = context.createImageData(width, height);
    ids.forEach((id, i) => {
      const [red, green, blue, opaque] = colours.get(id) ?? [0, 0, 0, 0];
      image.data.set([red, green, blue, alpha ? (id === 255 ? alpha : 0) : opaque], 4 * i);
    });
    context.putImageData(image, 0, 0);
  }
  function dot(x, y) {
    const radius = size.value / 2;
    for (let row = Math.floor(y - radius); row <= y + radius; row++) {
      for (let column = Math.floor(x - radius); column <= x + radius; column++) {
        const inside = (column + 0.5 - x) ** 2 + (row + 0.5 - y) ** 2 <= Math.max(radius, 0.71) ** 2;
        if (inside && row >= 0 && row < height && column >= 0 && column < width) ids[row * width + column] = chosen.id;
      }
    }
  }
  function line([x, y], [toX, toY]) {
    const steps = Math.max(1, Math.ceil(2 * Math.max(Math.abs(toX - x), Math.abs(toY - y))));
    for (let i = 0; i <= steps; i++) dot(x + ((toX - x) * i) / steps, y + ((toY - y) * i) / steps);
    show();
  }
  const place = (event) => {
    const box = canvas.getBoundingClientRect();
    return [((event.clientX - box.left) / box.width) * width, ((event.clientY - box.top) / box.height) * height];
  };
  const keep = () => past.push(ids.slice()) > 30 && past.shift();
  let last = null;
  canvas.onpointerdown = (event) => {
    event.preventDefault();
    canvas.setPointerCapture(event.pointerId);
    keep();
    line((last = place(event)), last);
  };
  canvas.onpointermove = (event) => {
    if (last) line(last, (last = place(event)));
  };
  canvas.onpointerup = canvas.onpointercancel = () => {
    if (last) changed();
    last = null;
  };
  const tools = make('div', { className: 'tools' },
    make('label', {}, 'brush ', size),
    tool('fill all', () => { keep(); ids.fill(chosen.id); show(); changed(); }),
    tool('undo', () => { if (past.length) { ids.set(past.pop()); show(); changed(); } }),
    tool('clear', () => { keep(); ids.fill(ground); show(); changed(); }));
  show();
  return { ids, canvas, tools, height, width, onchange: (action) => { changed = action; } };
}

// A place to drop a file; `take` gets it.
function drop(what, take) {
  const input = make('input', { type: 'file', accept: facts.accept });
  input.setAttribute('aria-label', `${facts.slot}: choose ${what}`);
  const area = make('label', { className: 'drop' }, make('span', { textContent: `Drop ${what} here, or choose one` }), input);
  const given = async (file) => {
    message.textContent = '';
    if (!file) return;
    if (file.size > facts.bytes) message.textContent = `${file.name} has more than ${facts.bytes >> 20} MB`;
    else await take(file, area);
    input.value = '';
  };
  input.onchange = () => given(input.files[0]);
  area.ondragover = (event) => { event.preventDefault(); area.classList.add('over'); };
  area.ondragleave = () => area.classList.remove('over');
  area.ondrop = (event) => { event.preventDefault(); area.classList.remove('over'); given(event.dataTransfer.files[0]); };
  return area;
}

async function drawn(file) {
  let bitmap;
  try {
    bitmap = await createImageBitmap(file);
  } catch {
    message.textContent = `${file.name} cannot be read as an image`;
    return null;
  }
  if (Math.max(bitmap.width, bitmap.height) > facts.side) {
    message.textContent = `an image has at most ${facts.side} pixels a side here; this one is ${bitmap.width} x ${bitmap.height}`;
    return null;
  }
  const canvas = make('canvas', { width: bitmap.width, height: bitmap.height, className: 'canvas' });
  canvas.getContext('2d').drawImage(bitmap, 0, 0);
  return canvas;
}

function image(withMask) {
  const shown = make('div', { className: 'shown' });
  const clear = () => { shown.replaceChildren(); send(null); };
  const area = drop('an image', async (file) => {
    const canvas = await drawn(file);
    if (!canvas) return;
    const sides = make('span', { className: 'facts', textContent: `${canvas.width} x ${canvas.height} pixels` });
    if (!withMask) {
      shown.replaceChildren(canvas, make('div', { className: 'tools' }, sides, tool('take away', clear)));
      send({ image: canvas.toDataURL('image/png') });
      return;
    }
    const over = paintedCanvas(canvas.height, canvas.width, 0, 170);
    const update = () => {
      const mask = make('canvas', { width: canvas.width, height: canvas.height });
      const pixels = mask.getContext('2d').createImageData(mask.width, mask.height);
      over.ids.forEach((id, i) => pixels.data.set([id, id, id, 255], 4 * i));
      mask.getContext('2d').putImageData(pixels, 0, 0);
      send({ image: canvas.toDataURL('image/png'), mask: mask.toDataURL('image/png') });
    };
    over.onchange(update);
    over.tools.append(tool('take away', clear));
    shown.replaceChildren(swatches(), make('div', { className: 'stack' }, canvas, over.canvas), over.tools);
    update();
  });
  root.append(area, shown);
}

function boxes() {
  const [height, width, grid] = [facts.height * 8, facts.width * 8, 32];
  const canvas = make('canvas', { height, width, className: 'canvas smooth', tabIndex: 0 });
  canvas.setAttribute('role', 'img');
  canvas.setAttribute('aria-label', `${facts.slot}: a grid to draw boxes on`);
  const context = canvas.getContext('2d');
  const list = make('div', { className: 'tools' });
  let all = [];
  let current = null;
  const brush = (id) => facts.brushes.find((one) => one.id === id);
  function show() {
    context.clearRect(0, 0, width, height);
    context.strokeStyle = '#8884';
    for (let i = 1; i < 8; i++) {
      context.strokeRect((i * width) / 8, -1, 0, height + 2);
      context.strokeRect(-1, (i * height) / 8, width + 2, 0);
    }
    context.lineWidth = 2;
    context.font = '600 13px system-ui, sans-serif';
    for (const [id, left, top, right, bottom] of current ? [...all, current] : all) {
      const colour = brush(id).colour;
      const at = [left * width, top * height, (right - left) * width, (bottom - top) * height];
      context.fillStyle = colour + '55';
      context.fillRect(...at);
      context.strokeStyle = context.fillStyle = colour;
      context.strokeRect(...at);
      context.fillText(brush(id).name, at[0] + 4, at[1] + 14);
    }
    list.replaceChildren(...all.map((box, index) =>
      tool(`${brush(box[0]).name} ×`, () => { all.splice(index, 1); update(); })));
  }
  const update = () => { show(); send(all.length ? { boxes: all } : null); };
  const place = (event) => {
    const frame = canvas.getBoundingClientRect();
    const share = (value) => Math.min(1, Math.max(0, Math.round(value * grid) / grid));
    return [share((event.clientX - frame.left) / frame.width), share((event.clientY - frame.top) / frame.height)];
  };
  let first = null;
  canvas.onpointerdown = (event) => {
    event.preventDefault();
    if (all.length >= facts.most) { message.textContent = `there are at most ${facts.most} boxes`; return; }
    canvas.setPointerCapture(event.pointerId);
    first = place(event);
  };
  canvas.onpointermove = (event) => {
    if (!first) return;
    const [x, y] = place(event);
    current = [chosen.id, Math.min(first[0], x), Math.min(first[1], y), Math.max(first[0], x), Math.max(first[1], y)];
    show();
  };
  canvas.onpointerup = canvas.onpointercancel = () => {
    if (current && current[3] > current[1] && current[4] > current[2]) all.push(current);
    first = current = null;
    update();
  };
  root.append(swatches(), canvas, list);
  show();
}

if (facts.kind === 'map' || facts.kind === 'mask') {
  const ground = facts.kind === 'mask' ? 0 : (facts.brushes.find((brush) => brush.id === 255) ?? facts.brushes[0]).id;
  const painted = paintedCanvas(facts.height, facts.width, ground, 0);
  painted.onchange(() => send({ ids: base64(painted.ids) }));
  if (facts.kind === 'map' && facts.brushes.length > 1) chosen = facts.brushes[ground === facts.brushes[0].id ? 1 : 0];
  root.append(swatches(), painted.canvas, painted.tools);
  props.value = JSON.stringify({ ids: base64(painted.ids) });
} else if (facts.kind === 'boxes') {
  boxes();
} else if (facts.kind === 'file') {
  const name = make('span', { className: 'facts' });
  root.append(drop('a file', async (file) => {
    name.textContent = file.name;
    send({ name: file.name, data: base64(new Uint8Array(await file.arrayBuffer())) });
  }), name);
} else {
  image(facts.kind === 'image-mask');
}
root.append(message);
