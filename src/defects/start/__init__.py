"""From a folder of images to an answer, in one command: what the folder is, what fits the time, all stages."""
