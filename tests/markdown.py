"""What is read from the documentation's pages."""

import re


def fenced(text: str, language: str) -> list[str]:
    """The content of each fenced block of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
