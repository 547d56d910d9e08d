"""`python -m pyinfra_vllm`, where the command itself is not on the PATH."""

from .cli import main

if __name__ == "__main__":
    main()
