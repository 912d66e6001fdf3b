"""Class folders of generated photographs: of many sizes, in all formats, gray, CMYK, palettes, turned by EXIF."""

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

KINDS = ("JPEG", "PNG", "WEBP", "gray JPEG", "CMYK JPEG", "turned JPEG", "palette PNG", "alpha PNG", "BMP")
CLASSES = ("circle", "square")


def photograph(number: int, label: int) -> Image.Image:
    """A shape of the class on colored clouds; the sizes are 20 to 90 pixels."""
    random = np.random.default_rng(number)
    width, height = random.integers(20, 90, 2).tolist()
    image = Image.fromarray(random.integers(0, 120, (4, 5, 3), dtype=np.uint8)).resize((width, height))
    box = (width // 4, height // 4, 3 * width // 4, 3 * height // 4)
    color = tuple(random.integers(150, 255, 3).tolist())
    getattr(ImageDraw.Draw(image), ("ellipse", "rectangle")[label])(box, fill=color)
    return image


def encoded(image: Image.Image, kind: str) -> bytes:
    buffer, exif = io.BytesIO(), Image.Exif()
    *how, form = kind.split()
    if how == ["turned"]:
        exif[0x0112] = 6
    modes = {"gray": "L", "CMYK": "CMYK", "palette": "P", "alpha": "RGBA"}
    converted = image.convert(modes[how[0]]) if how and how[0] in modes else image
    converted.save(buffer, form, **({"exif": exif} if how == ["turned"] else {}))
    return buffer.getvalue()


def write(folder: Path, train: int = 42, test: int = 18) -> Path:
    """Write {train,val}/<class>/<number>.img, in every kind."""
    for number in range(train + test):
        label = number % len(CLASSES)
        path = folder / ("train" if number < train else "val") / CLASSES[label] / f"{number:03}.img"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(photograph(number, label), KINDS[number // 2 % len(KINDS)]))
    return folder
