"""The `fusemirror` command: `python -m fusemirror`."""

from fusemirror.cli.main import main

if __name__ == "__main__":
    main()
