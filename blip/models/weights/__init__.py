"""Others' checkpoints in and out: names, files, fitting them to a model, and starting from the paper's pre-trained
parts.
"""
