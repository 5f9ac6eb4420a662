"""Multiplies, reports progress and writes an artifact."""

from ostler.task import output_dir, progress


def run(a, b):
    progress(50, "multiplying")
    (output_dir() / "product.txt").write_text(str(a * b))
    print("product", a * b)
