"""`python -m jaxedit VERB …`: the console script `jaxedit`, where it is not installed."""

from jaxedit import cli

if __name__ == "__main__":
    raise SystemExit(cli.main())
