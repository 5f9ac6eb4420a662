"""The loops of the node, each alone in its file: observe, decide with a pure function, act."""
