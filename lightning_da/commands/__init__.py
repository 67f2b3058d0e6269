"""The commands: one file each, with a function `run` that is given the words behind the name of the command."""

COMMANDS = {
    "fit": "train a method on a pair of domains",
    "validate": "measure a fit on the validation splits",
    "test": "measure a fit on the test splits; the figures join the run of the fit",
    "predict": "classify the target; writes a CSV file",
    "sweep": "fit and test several methods and seeds, and print the comparison",
    "compare": "print the runs of an experiment as a table",
    "ensemble": "join earlier runs; for each sample the network with the largest margin decides",
    "curve": "draw the transferability of each layer of a network; nothing is trained",
    "layer-transfer": "train on task B with the first layers of a network for task A, at every depth",
    "speech-transfer": "learn speakers or genders, then emotions, in two sizes; print the tables",
}
"""Names, as typed, and one line of help. The file has the same name, with _ for -."""
