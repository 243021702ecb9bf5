"""The two stages' loops and what keeps them alive: checkpoints, EMA, optimizers, logs, signals. This file loads no torch."""
