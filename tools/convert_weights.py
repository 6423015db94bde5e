"""Other people's weights -> a file in video_gn's names, for its input (docs/weights.md says what is read).

python tools/convert_weights.py R-50-GN.pkl r50_gn.pt
python tools/convert_weights.py torchvision:resnet50:IMAGENET1K_V1 r50_bn.pt
python tools/convert_weights.py timm:resnet50_gn r50_gn.pt [--force]
"""

from __future__ import annotations

from pathlib import Path

from video_gn import cli
from video_gn.errors import UserError


def main() -> None:
    parser = cli.parser(__doc__)
    parser.add_argument(
        "source", help="a .pt, .pth, .safetensors or .pkl file, torchvision:NAME[:WEIGHTS] or timm:NAME"
    )
    parser.add_argument("out", type=Path, help="file to write, .pt")
    parser.add_argument("--force", action="store_true", help="overwrite it")
    args = parser.parse_args()
    if args.out.exists() and not args.force:
        raise UserError(f"{args.out}: exists already; choose another name or give --force")

    from video_gn.files.atomic import check_writable
    from video_gn.models.weights import read_weights
    from video_gn.run.checkpoint import save

    check_writable(args.out.parent)  # before a download
    weights, said = read_weights(args.source)
    save(args.out, {"model": weights, "converted": said})
    print(said)
    print(
        f"{args.out}: {len(weights)} tensors, {sum(tensor.numel() for tensor in weights.values()) / 1e6:.2f} M numbers"
    )


if __name__ == "__main__":
    cli.run(main)
