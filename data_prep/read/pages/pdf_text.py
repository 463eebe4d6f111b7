"""A separate program: reads a PDF from standard input and writes its text, or why it has none, to standard output.

A malicious or damaged PDF can keep a parser busy forever or exhaust memory. So it is parsed in this process, not in the
worker that encodes the other documents, with limits on CPU time (SIGXCPU ends it) and memory.
"""

import io
import logging
import resource
import sys

OBJECTION = 3  # the exit code that goes with a reason


def text_of(data: bytes, characters: int) -> str:
    """Return the text layer, page by page, up to the page that exceeds `characters`."""
    import pypdf  # after the limits are set

    logging.getLogger("pypdf").setLevel(logging.ERROR)  # it warns about every irregularity of every file
    reader = pypdf.PdfReader(io.BytesIO(data))
    if reader.is_encrypted and not reader.decrypt(""):
        raise PermissionError
    pages: list[str] = []
    for page in reader.pages:
        pages.append(page.extract_text())
        characters -= len(pages[-1])
        if characters < 0:
            break
    return "\n\n".join(page for page in pages if page.strip())


def main(cpu_s: int, memory_bytes: int, characters: int) -> int:
    """Return the exit code."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 1))
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    try:
        answer, code = text_of(sys.stdin.buffer.read(), characters), 0
    except PermissionError:
        answer, code = "encrypted PDF", OBJECTION
    except Exception as error:  # noqa: BLE001  # parsers raise anything on unknown files; the file is counted
        answer, code = f"damaged PDF ({type(error).__name__})", OBJECTION
    sys.stdout.buffer.write(answer.encode("utf-8", "replace"))
    return code


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
