"""What each data set of the paper is: where to get it, how it is laid out, how large it is and how it is prompted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from datadream.data.known import layouts
from datadream.data.known.place import Place
from datadream.data.listing import Listing
from datadream.data.names import imagenet_wordnet

GUIDE = "docs/datasets.md"
"""Where people read how each set is got and laid out."""


class Counts(NamedTuple):
    """Published numbers of classes and of photos by part."""

    classes: int
    train: int
    val: int
    test: int

    def __str__(self) -> str:
        return f"{self.classes:,} classes with {self.train:,} train, {self.val:,} val and {self.test:,} test"


class CoopSplit(NamedTuple):
    """A split that CoOp's authors made (Zhou et al., 2022)."""

    file: str
    """What it is called, beside the folder of photos."""
    counts: Counts
    """By the paper's appendix A; the lists of photos in DISEF's repository are as long."""
    paths_from: str = "."
    """From where its paths count, seen from the folder of photos."""


@dataclass(frozen=True, kw_only=True, slots=True)
class KnownSet:
    """A data set by its facts."""

    title: str
    url: str
    """The page to get it from."""
    folders: tuple[str, ...]
    """Where below data.source it may lie: what archives, CoOp and torchvision call its folder."""
    photos: tuple[str, ...]
    """The folder of photos in it, by which it is known; one of these."""
    needs: str
    """What else must be there, for people."""
    official: Callable[[Place], Listing]
    """Reads the official split, or without one all photos as the pool."""
    official_counts: Counts
    """Of the official split (the page above)."""
    coop: CoopSplit | None = None
    """CoOp's split, which comes before the official one where its file is there."""
    word: str = ""
    """What the authors' code calls the photos in prompts: "aircraft" for "a aircraft photo of a 707-320"."""
    templates: tuple[str, ...] = ("a photo of a {name}.",)
    """CLIP's templates (Radford et al., 2021; the repository's data/prompts.md)."""

    @property
    def prompt(self) -> str:
        """The authors' code's prompt."""
        return f"a {self.word} photo of a {{name}}" if self.word else "a photo of a {name}"


# Folders of Caltech101 whose names are not those of CoOp with underscores.
CALTECH_NAMES = {"Faces": "face", "Leopards": "leopard", "Motorbikes": "motorbike", "airplanes": "airplane"}
CALTECH_FOLDERS = """
    Faces Leopards Motorbikes accordion airplanes anchor ant barrel bass beaver binocular bonsai brain brontosaurus
    buddha butterfly camera cannon car_side ceiling_fan cellphone chair chandelier cougar_body cougar_face crab
    crayfish crocodile crocodile_head cup dalmatian dollar_bill dolphin dragonfly electric_guitar elephant emu
    euphonium ewer ferry flamingo flamingo_head garfield gerenuk gramophone grand_piano hawksbill headphone hedgehog
    helicopter ibis inline_skate joshua_tree kangaroo ketch lamp laptop llama lobster lotus mandolin mayfly menorah
    metronome minaret nautilus octopus okapi pagoda panda pigeon pizza platypus pyramid revolver rhino rooster
    saxophone schooner scissors scorpion sea_horse snoopy soccer_ball stapler starfish stegosaurus stop_sign strawberry
    sunflower tick trilobite umbrella watch water_lilly wheelchair wild_cat windsor_chair wrench yin_yang
"""
EUROSAT_NAMES = {
    "AnnualCrop": "Annual Crop Land",
    "Forest": "Forest",
    "HerbaceousVegetation": "Herbaceous Vegetation Land",
    "Highway": "Highway or Road",
    "Industrial": "Industrial Buildings",
    "Pasture": "Pasture Land",
    "PermanentCrop": "Permanent Crop Land",
    "Residential": "Residential Buildings",
    "River": "River",
    "SeaLake": "Sea or Lake",
}
# The classes of Tian et al. (2019), which the authors' code names as well.
IMAGENET100_IDS = """
    n01558993 n01692333 n01729322 n01735189 n01749939 n01773797 n01820546 n01855672 n01978455 n01980166 n01983481
    n02009229 n02018207 n02085620 n02086240 n02086910 n02087046 n02089867 n02089973 n02090622 n02091831 n02093428
    n02099849 n02100583 n02104029 n02105505 n02106550 n02107142 n02108089 n02109047 n02113799 n02113978 n02114855
    n02116738 n02119022 n02123045 n02138441 n02172182 n02231487 n02259212 n02326432 n02396427 n02483362 n02488291
    n02701002 n02788148 n02804414 n02859443 n02869837 n02877765 n02974003 n03017168 n03032252 n03062245 n03085013
    n03259280 n03379051 n03424325 n03492542 n03494278 n03530642 n03584829 n03594734 n03637318 n03642806 n03764736
    n03775546 n03777754 n03785016 n03787032 n03794056 n03837869 n03891251 n03903868 n03930630 n03947888 n04026417
    n04067472 n04099969 n04111531 n04127249 n04136333 n04229816 n04238763 n04336792 n04418357 n04429376 n04435653
    n04485082 n04493381 n04517823 n04589890 n04592741 n07714571 n07715103 n07753275 n07831146 n07836838 n13037406
    n13040303
"""
# The seven that CLIP's authors chose from their 80.
IMAGENET_TEMPLATES = (
    "itap of a {name}.",
    "a bad photo of the {name}.",
    "a origami {name}.",
    "a photo of the large {name}.",
    "a {name} in a video game.",
    "art of the {name}.",
    "a photo of the small {name}.",
)
CALTECH_TEMPLATES = tuple(
    template.format(article=article, name="{name}")
    for article in ("a", "the")
    for template in (
        "a photo of {article} {name}.",
        "a painting of {article} {name}.",
        "{article} plastic {name}.",
        "a sculpture of {article} {name}.",
        "a sketch of {article} {name}.",
        "a tattoo of {article} {name}.",
        "{article} toy {name}.",
        "a rendition of {article} {name}.",
        "{article} embroidered {name}.",
        "{article} cartoon {name}.",
        "{article} {name} in a video game.",
        "{article} plushie {name}.",
        "{article} origami {name}.",
        "art of {article} {name}.",
        "graffiti of {article} {name}.",
        "a drawing of {article} {name}.",
        "a doodle of {article} {name}.",
    )
)
IMAGENET_FOLDERS = ("imagenet", "images", "imagenet/images", layouts.KAGGLE_FOLDER)

KNOWN = {
    "imagenet": KnownSet(
        title="ImageNet (ILSVRC 2012)",
        url="https://image-net.org/challenges/LSVRC/2012/",
        folders=IMAGENET_FOLDERS,
        photos=("train",),
        needs="val/, in folders or with ILSVRC2012_devkit_t12/ or LOC_val_solution.csv",
        official=partial(layouts.imagenet, ids=imagenet_wordnet),
        official_counts=Counts(1000, 1_281_167, 0, 50_000),
        templates=IMAGENET_TEMPLATES,
    ),
    "imagenet100": KnownSet(
        title="ImageNet-100",
        url="https://image-net.org/challenges/LSVRC/2012/",
        folders=("imagenet100", "imagenet-100", *IMAGENET_FOLDERS),
        photos=("train",),
        needs="val/, as for ImageNet, of which it is a part",
        official=partial(layouts.imagenet, ids=IMAGENET100_IDS.split),
        official_counts=Counts(100, 126_689, 0, 5_000),
        templates=IMAGENET_TEMPLATES,
    ),
    "caltech101": KnownSet(
        title="Caltech 101",
        url="https://data.caltech.edu/records/mzrjq-6wc02",
        folders=("caltech-101", "caltech101"),
        photos=("101_ObjectCategories",),
        needs="nothing",
        official=partial(
            layouts.class_folders,
            names={folder: CALTECH_NAMES.get(folder, folder) for folder in CALTECH_FOLDERS.split()},
            ignored=("BACKGROUND_Google", "Faces_easy"),
        ),
        official_counts=Counts(100, 8_242, 0, 0),
        coop=CoopSplit("split_zhou_Caltech101.json", Counts(100, 4_128, 1_649, 2_465)),
        templates=CALTECH_TEMPLATES,
    ),
    "pets": KnownSet(
        title="Oxford-IIIT Pet",
        url="https://www.robots.ox.ac.uk/~vgg/data/pets/",
        folders=("oxford_pets", "oxford-iiit-pet"),
        photos=("images",),
        needs="annotations/",
        official=layouts.pets,
        official_counts=Counts(37, 3_680, 0, 3_669),
        coop=CoopSplit("split_zhou_OxfordPets.json", Counts(37, 2_944, 736, 3_669)),
        word="pet",
        templates=("a photo of a {name}, a type of pet.",),
    ),
    "cars": KnownSet(
        title="Stanford Cars",
        url="https://ai.stanford.edu/~jkrause/cars/car_dataset.html",
        folders=("stanford_cars",),
        photos=("cars_train",),
        needs="cars_test/, devkit/ and cars_test_annos_withlabels.mat",
        official=layouts.cars,
        official_counts=Counts(196, 8_144, 0, 8_041),
        coop=CoopSplit("split_zhou_StanfordCars.json", Counts(196, 6_509, 1_635, 8_041), paths_from=".."),
        word="car",
        templates=(
            "a photo of a {name}.",
            "a photo of the {name}.",
            "a photo of my {name}.",
            "i love my {name}!",
            "a photo of my dirty {name}.",
            "a photo of my clean {name}.",
            "a photo of my new {name}.",
            "a photo of my old {name}.",
        ),
    ),
    "flowers102": KnownSet(
        title="Oxford 102 Flower",
        url="https://www.robots.ox.ac.uk/~vgg/data/flowers/102/",
        folders=("oxford_flowers", "flowers-102"),
        photos=("jpg",),
        needs="imagelabels.mat and setid.mat",
        official=layouts.flowers,
        official_counts=Counts(102, 1_020, 1_020, 6_149),
        coop=CoopSplit("split_zhou_OxfordFlowers.json", Counts(102, 4_093, 1_633, 2_463)),
        word="flower",
        templates=("a photo of a {name}, a type of flower.",),
    ),
    "food101": KnownSet(
        title="Food-101",
        url="https://data.vision.ee.ethz.ch/cvl/datasets_extra/food-101/",
        folders=("food-101",),
        photos=("images",),
        needs="meta/",
        official=layouts.food,
        official_counts=Counts(101, 75_750, 0, 25_250),
        coop=CoopSplit("split_zhou_Food101.json", Counts(101, 50_500, 20_200, 30_300)),
        word="food",
        templates=("a photo of {name}, a type of food.",),
    ),
    "aircraft": KnownSet(
        title="FGVC-Aircraft",
        url="https://www.robots.ox.ac.uk/~vgg/data/fgvc-aircraft/",
        folders=("data", "fgvc_aircraft", "fgvc-aircraft-2013b/data"),
        photos=("images",),
        needs="variants.txt and images_variant_*.txt",
        official=layouts.aircraft,
        official_counts=Counts(100, 3_334, 3_333, 3_333),  # which CoOp takes too
        word="aircraft",
        templates=("a photo of a {name}, a type of aircraft.", "a photo of the {name}, a type of aircraft."),
    ),
    "sun397": KnownSet(
        title="SUN397",
        url="https://vision.princeton.edu/projects/2010/SUN/",
        folders=("sun397",),
        photos=("SUN397",),
        needs="ClassName.txt, Training_01.txt and Testing_01.txt of Partitions.zip",
        official=layouts.sun,
        official_counts=Counts(397, 19_850, 0, 19_850),
        coop=CoopSplit("split_zhou_SUN397.json", Counts(397, 15_880, 3_970, 19_850)),
        word="scene",
        templates=("a photo of a {name}.", "a photo of the {name}."),
    ),
    "dtd": KnownSet(
        title="Describable Textures (DTD)",
        url="https://www.robots.ox.ac.uk/~vgg/data/dtd/",
        folders=("dtd", "dtd/dtd"),
        photos=("images",),
        needs="labels/",
        official=layouts.textures,
        official_counts=Counts(47, 1_880, 1_880, 1_880),
        coop=CoopSplit("split_zhou_DescribableTextures.json", Counts(47, 2_820, 1_128, 1_692)),
        word="texture",
        templates=tuple(
            f"a photo of {article} {{name}} {thing}."
            for article in ("a", "the")
            for thing in ("texture", "pattern", "thing", "object")
        ),
    ),
    "eurosat": KnownSet(
        title="EuroSAT (RGB)",
        url="https://github.com/phelber/EuroSAT",
        folders=("eurosat", "EuroSAT"),
        photos=("2750", "EuroSAT_RGB"),
        needs="nothing",
        official=partial(layouts.class_folders, names=EUROSAT_NAMES),
        official_counts=Counts(10, 27_000, 0, 0),
        coop=CoopSplit("split_zhou_EuroSAT.json", Counts(10, 13_500, 5_400, 8_100)),
        word="satellite",
        templates=(
            "a centered satellite photo of {name}.",
            "a centered satellite photo of a {name}.",
            "a centered satellite photo of the {name}.",
        ),
    ),
}
"""By the name that data.dataset takes."""
