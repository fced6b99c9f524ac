"""Every data set is read once, into samples."""
