import re

from lora_mnist.play.pages import FOLDER, static_files


def test_the_page_names_only_its_own_files_and_has_no_code_in_it():
    page, files = (FOLDER / "index.html").read_text(), static_files()
    for name in re.findall(r'(?:src|href)="([^"]+)"', page):
        assert f"/{name}" in files
    assert not re.search(r"<script(?![^>]*src=)|<style|\son\w+=|\sstyle=", page)


def test_every_module_imports_only_its_own_and_writes_no_markup():
    for file in FOLDER.glob("*.js"):
        text = file.read_text()
        for name in re.findall(r'from "([^"]+)"', text):
            assert (FOLDER / name).is_file()
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|https?://", text), file
        assert len(text.splitlines()) <= 250
