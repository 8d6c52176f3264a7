"""Pre-train the tiny backbone from scratch, one stage per process.

python -m datadream.models.tiny.pretrain --stage vae --fonts /usr/share/fonts --work WORK
python -m datadream.models.tiny.pretrain --stage clip --fonts /usr/share/fonts --work WORK
python -m datadream.models.tiny.pretrain --stage unet --fonts /usr/share/fonts --work WORK
python -m datadream.models.tiny.pretrain --stage export --work WORK

`vae` comes before `unet`; `clip` depends on neither, so it can run beside them. Budgets are steps, not seconds, and
each process uses one thread: two processes on two cores beat one process on both.
"""

import argparse
import json
import logging
import platform
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

import open_clip
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from transformers import CLIPTextModel

from datadream.models.tiny.export import export_clip, export_diffusion, write_json
from datadream.models.tiny.fonts import choose_faces, find_faces
from datadream.models.tiny.glyphs import all_captions, render_faces
from datadream.models.tiny.networks import build_tokenizer, clip_config
from datadream.models.tiny.train_clip import train_clip
from datadream.models.tiny.train_unet import train_unet
from datadream.models.tiny.train_vae import train_vae

PACKAGE_FOLDER = Path(__file__).parent
# A prototype's denoiser made blobs after 2,400 steps, and mostly the right character after 4,400.
STEPS = {"vae": 2200, "clip": 3000, "unet": 4000}
LIBRARIES = ("torch", "diffusers", "transformers", "open_clip_torch", "pillow")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=(*STEPS, "export", "all"), required=True)
    parser.add_argument("--fonts", type=Path, nargs="+", default=[Path("/usr/share/fonts")], metavar="DIR")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="checkpoints and records")
    parser.add_argument("--output", type=Path, default=PACKAGE_FOLDER, metavar="DIR", help="where export writes")
    parser.add_argument("--steps", type=int, help=f"training steps of each chosen stage, default {STEPS}")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    for stage in (*STEPS, "export") if arguments.stage == "all" else (arguments.stage,):
        if stage == "export":
            export(arguments.work, arguments.output)
        else:
            train(stage, arguments.fonts, arguments.work, steps=arguments.steps or STEPS[stage], seed=arguments.seed)


def train(stage: str, font_dirs: list[Path], work: Path, *, steps: int, seed: int) -> None:
    """Run one stage and leave its weights and record in the work folder."""
    work.mkdir(parents=True, exist_ok=True)
    masks, faces = render_faces(choose_faces(find_faces(font_dirs)))
    is_validation = torch.tensor([face.is_validation for face in faces])
    training, validation = masks[~is_validation], masks[is_validation]
    tokenizer = build_tokenizer(all_captions())
    if stage == "vae":
        vae, record = train_vae(training, validation, steps=steps, seed=seed)
        vae.save_pretrained(work / "vae")
    elif stage == "clip":
        model, record = train_clip(training, validation, tokenizer, steps=steps, seed=seed)
        torch.save(model.state_dict(), work / "clip.pt")
    else:
        vae = AutoencoderKL.from_pretrained(work / "vae").eval()
        modules, record = train_unet(vae, tokenizer, training, steps=steps, seed=seed)
        modules["unet"].save_pretrained(work / "unet")
        modules["text_encoder"].save_pretrained(work / "text_encoder")
    versions = {"python": platform.python_version()} | {library: version(library) for library in LIBRARIES}
    write_json(work / f"{stage}.json", asdict(record) | {"versions": versions})


def export(work: Path, output: Path) -> None:
    """Turn the work folder's weights into the shipped folders and log."""
    tokenizer = build_tokenizer(all_captions())
    model = open_clip.CLIP(**clip_config(len(tokenizer))["model_cfg"])
    model.load_state_dict(torch.load(work / "clip.pt", weights_only=True))
    export_clip(output / "clip", model=model, tokenizer=tokenizer)
    export_diffusion(
        output / "diffusion",
        vae=AutoencoderKL.from_pretrained(work / "vae"),
        unet=UNet2DConditionModel.from_pretrained(work / "unet"),
        text_encoder=CLIPTextModel.from_pretrained(work / "text_encoder"),
        tokenizer=tokenizer,
    )
    log = {stage: json.loads((work / f"{stage}.json").read_text()) for stage in STEPS}
    write_json(output / "pretrain_log.json", log)


if __name__ == "__main__":
    main()
