"""`python -m ctrlgen`, and `accelerate launch -m ctrlgen train …`."""

from ctrlgen.cli import main

main()
