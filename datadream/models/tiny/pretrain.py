"""Pre-train one of the two embedded backbones from scratch, one stage per process.

python -m datadream.models.tiny.pretrain --stage vae --work WORK
python -m datadream.models.tiny.pretrain --stage clip --work WORK
python -m datadream.models.tiny.pretrain --stage unet --work WORK
python -m datadream.models.tiny.pretrain --stage export --work WORK

`vae` comes before `unet`, and with --diet pictures `clip` does too: its text tower becomes the text encoder. `vae` and
`clip` can run side by side. Budgets are steps, not seconds, and each process uses one thread unless --threads says
more: on two cores, two processes beat one on both, and what runs alone, as `unet` does, is best given both. `unet`
goes on after a kill.

--diet pictures begins with a stage `draw`, which takes --icons, the .tgz of `npm pack @iconify/json@2.2.535`, and
leaves out what looks like a picture below --unlike.
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
from transformers import CLIPTextModel, CLIPTokenizer

from datadream.models.tiny.diets import Diet, pictures_diet, print_diet
from datadream.models.tiny.drawings import read_drawings
from datadream.models.tiny.export import export_clip, export_diffusion, write_json
from datadream.models.tiny.networks import build_text_encoder, build_tokenizer, clip_config, text_encoder_of
from datadream.models.tiny.train_clip import train_clip
from datadream.models.tiny.train_unet import train_unet
from datadream.models.tiny.train_vae import train_vae

PACKAGE_FOLDER = Path(__file__).parent
FOLDERS = {"print": PACKAGE_FOLDER, "pictures": PACKAGE_FOLDER / "pictures"}
STAGES = ("vae", "clip", "unet")
DRAWINGS = "drawings.pt"
CHECKPOINT = "unet.pt"
LIBRARIES = ("torch", "diffusers", "transformers", "open_clip_torch", "pillow")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=("draw", *STAGES, "export", "all"), required=True)
    parser.add_argument("--diet", choices=FOLDERS, default="print")
    parser.add_argument("--fonts", type=Path, nargs="+", default=[Path("/usr/share/fonts")], metavar="DIR")
    parser.add_argument("--icons", type=Path, metavar="FILE", help="@iconify/json's .tgz, to draw")
    parser.add_argument(
        "--unlike", type=Path, nargs="+", default=[], metavar="DIR", help="leave out drawings alike to a picture below"
    )
    parser.add_argument("--work", type=Path, required=True, metavar="DIR", help="checkpoints and records")
    parser.add_argument("--output", type=Path, metavar="DIR", help="where export writes; by default the package")
    parser.add_argument("--steps", type=int, help="training steps of each chosen stage")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    if arguments.threads < 1:
        parser.error(f"--threads is {arguments.threads}: expected 1 or more.")
    torch.set_num_threads(arguments.threads)
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    work = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    drawn = work / DRAWINGS
    stages = (*STAGES, "export") if arguments.stage == "all" else (arguments.stage,)
    if arguments.stage == "draw" or (arguments.stage, arguments.diet) == ("all", "pictures"):
        if not arguments.icons:
            parser.error("--stage draw needs --icons FILE.")
        # A folder that is not there would hold nothing to leave out, and nobody would see it.
        if missing := [path for path in (arguments.icons, *arguments.unlike) if not path.exists()]:
            parser.error(f"{missing[0]} does not exist.")
        torch.save(read_drawings(arguments.icons, arguments.unlike), unfinished := drawn.with_suffix(".tmp"))
        unfinished.replace(drawn)
        # All that was trained knew other drawings.
        (work / CHECKPOINT).unlink(missing_ok=True)
    if arguments.stage == "draw":
        return
    if arguments.diet == "print":
        diet = print_diet(arguments.fonts)
    elif drawn.exists():
        diet = pictures_diet(arguments.fonts, *torch.load(drawn, weights_only=False))
    else:
        parser.error(f"{work} has no {DRAWINGS}: --stage draw comes first.")
    for stage in stages:
        if stage == "export":
            export(diet, work, arguments.output or FOLDERS[arguments.diet])
        else:
            train(stage, diet, work, steps=arguments.steps or diet.budgets[stage].steps, seed=arguments.seed)


def train(stage: str, diet: Diet, work: Path, *, steps: int, seed: int) -> None:
    """Run one stage and leave its weights and record in the work folder."""
    tokenizer = build_tokenizer(diet.corpus, diet.vocabulary)
    sample, budget = diet.samplers[stage], diet.budgets[stage]
    if stage == "vae":
        vae, record = train_vae(sample, diet.held_out[stage], steps=steps, seed=seed)
        vae.save_pretrained(work / "vae")
    elif stage == "clip":
        model, record = train_clip(
            sample, diet.held_out[stage], tokenizer, steps=steps, batch_size=budget.batch_size, seed=seed
        )
        torch.save(model.state_dict(), work / "clip.pt")
    else:

        def make_text_encoder() -> CLIPTextModel:
            # As Stable Diffusion's, it can come from a CLIP: of thousands of names, 2,000 steps from scratch had
            # learnt none.
            if diet.text_from_clip:
                return text_encoder_of(load_clip(work, tokenizer), tokenizer)
            return build_text_encoder(tokenizer)

        modules, record = train_unet(
            AutoencoderKL.from_pretrained(work / "vae").eval(),
            make_text_encoder,
            tokenizer,
            sample,
            steps=steps,
            batch_size=budget.batch_size,
            cached_images=budget.cached_images,
            renew_every=budget.renew_every,
            seed=seed,
            checkpoint=work / CHECKPOINT,
        )
        modules["unet"].save_pretrained(work / "unet")
        modules["text_encoder"].save_pretrained(work / "text_encoder")
    # A denoiser that was begun on another autoencoder or CLIP does not go on, nor does one that is done.
    (work / CHECKPOINT).unlink(missing_ok=True)
    versions = {"python": platform.python_version()} | {library: version(library) for library in LIBRARIES}
    write_json(work / f"{stage}.json", asdict(record) | {"versions": versions})


def load_clip(work: Path, tokenizer: CLIPTokenizer) -> open_clip.CLIP:
    model = open_clip.CLIP(**clip_config(len(tokenizer))["model_cfg"])
    model.load_state_dict(torch.load(work / "clip.pt", weights_only=True))
    return model


def export(diet: Diet, work: Path, output: Path) -> None:
    """Turn the work folder's weights into the shipped folders and log."""
    tokenizer = build_tokenizer(diet.corpus, diet.vocabulary)
    export_clip(output / "clip", model=load_clip(work, tokenizer), tokenizer=tokenizer)
    export_diffusion(
        output / "diffusion",
        vae=AutoencoderKL.from_pretrained(work / "vae"),
        unet=UNet2DConditionModel.from_pretrained(work / "unet"),
        text_encoder=CLIPTextModel.from_pretrained(work / "text_encoder"),
        tokenizer=tokenizer,
    )
    log = {stage: json.loads((work / f"{stage}.json").read_text()) for stage in STAGES}
    write_json(output / "pretrain_log.json", log)
    if diet.icon_sets:
        lines = ",\n".join(f"  {json.dumps(each)}" for each in diet.icon_sets)
        (output / "drawings.json").write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
