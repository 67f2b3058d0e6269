from lightning_da.main import main


def run() -> None:
    """The console script: as `main`, with nothing returned to the shell."""
    main()


if __name__ == "__main__":
    run()
