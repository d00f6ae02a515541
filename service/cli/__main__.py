"""``python -m service.cli``: ``oec`` from a folder of sources, such as a job's working directory."""

from service.cli.commands import main

main(prog_name="oec")
