"""Options that several benchmarks' commands have alike."""

from pathlib import Path
from typing import Annotated

import typer

ModelOption = Annotated[
    Path | None, typer.Option("--model", help="A Hugging Face folder; none: the default model.")
]
DeviceOption = Annotated[str, typer.Option("--device", help="cpu, cuda or auto.")]
DataOption = Annotated[Path, typer.Option("--data", help="The folder of the benchmarks.")]
BenchOption = Annotated[Path, typer.Option("--bench", help="Where what was measured of the root is kept.")]
