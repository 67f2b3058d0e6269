"""The commands, one file each, with a function `run` that takes the arguments after the name of the command."""

COMMANDS = {
    "new": "write a project of your own that depends on this one",
    "fit": "train a method on a pair of domains",
    "validate": "evaluate a fit on the validation splits",
    "test": "evaluate a fit on the test splits; the results are added to its run",
    "predict": "classify the target and write a CSV file",
    "sweep": "fit and test several methods and seeds, and print a comparison",
    "search": "find settings of a method by a score without target labels",
    "reverse": "score runs by reverse validation, which reads no target labels",
    "compare": "print the runs of an experiment as a table",
    "report": "write one HTML page about an experiment, to send to somebody",
    "ui": "print the addresses of the experiments and start the MLflow UI",
    "sync": "send to the MLflow store what it did not take while fits ran",
    "register": "put the model of a run into MLflow's registry",
    "export": "write the network of a run as a file of torch.export or ONNX",
    "ensemble": "combine earlier runs: the network with the largest margin classifies each sample",
    "curve": "draw the transferability of each layer of a network, without training",
    "label-curve": "train on a few labels of the target, and draw the accuracy over their number",
    "layer-transfer": "copy the first n layers from task A to task B, for each n, and train on B",
    "chains": "fine-tune from the source to the target through other domains, in every order",
    "shard": "write a domain of images into a few large files, for data that do not fit into memory",
    "speech-transfer": "train on speakers or genders, then on emotions, with two network sizes",
}
"""Name of each command and one line of help. The file name has _ instead of -."""
