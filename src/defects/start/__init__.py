"""From a folder of images to an answer, in one command: its layout, a plan for the time, all stages."""
