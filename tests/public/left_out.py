"""Packages with models for streams that cannot be tried here, and the reason."""

LEFT_OUT = {
    "wenet, icefall": "not published on the Python index",
    "GTCRN, DTLN, RNNoise (the torch model)": "not published on the Python index",
    "flair": "its language model imports boto3, and a dozen more that stream nothing",
}
