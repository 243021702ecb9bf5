"""`python -m ldmkit`, for torchrun and accelerate launch."""

from ldmkit.cli import main

if __name__ == "__main__":
    main()
