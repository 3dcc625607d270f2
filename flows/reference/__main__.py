from pathlib import Path

from flows.reference.pages import FOLDER, pages

if __name__ == "__main__":
    folder = Path(__file__).parents[2] / FOLDER
    for name, text in pages().items():
        (folder / name).write_text(text, encoding="utf-8")
        print(f"{FOLDER}/{name}")
