"""Text, figures and TensorBoard's board: arrays in, pictures out. No module of this room knows a run or a data set."""
