"""Says which one of an array it is."""

import os


def run(text):
    print(text, os.environ["OSTLER_ARRAY_INDEX"], os.environ["OSTLER_ARRAY_COUNT"])
