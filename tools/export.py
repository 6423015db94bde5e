"""Write a trained network as ONNX or as a torch.export program, for programs that do without this package.

python tools/export.py runs/demo/checkpoints/last.pt demo.onnx
python tools/export.py runs/demo/checkpoints/last.pt demo.pt2
python tools/export.py CHECKPOINT net.onnx --frames 32

The file takes normalized float32 clips (N, 3, T, crop, crop) and gives logits (N, classes); N and T are free. Class
names, mean, std and how clips are cut stand in its metadata. It is kept only once its logits, on clips of several N and
T, are PyTorch's to 1e-4. ONNX needs `pip install onnx onnxscript onnxruntime`. docs/export.md shows how to run it.
"""

from __future__ import annotations

from pathlib import Path

from video_gn import cli


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="runs/NAME/checkpoints/last.pt or best.pt")
    parser.add_argument("out", metavar="OUT", type=Path, help="the file to write, ending in .onnx or .pt2")
    parser.add_argument("--frames", type=int, metavar="T", help="fix the length of the clips (default: it is free)")
    args = parser.parse_args()

    from video_gn.export import export_checkpoint

    print(export_checkpoint(args.checkpoint, args.out, args.frames).text())


if __name__ == "__main__":
    cli.run(main)
