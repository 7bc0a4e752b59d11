"""Code on the kernel of the notebook that a page displays."""

from __future__ import annotations

from typing import Any

EXECUTE = """async (code) => {
  const kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel;
  const future = kernel.requestExecute({ code });
  let text = "";
  future.onIOPub = (m) => { if (m.header.msg_type === "stream") text += m.content.text;
                            if (m.header.msg_type === "error") text += m.content.evalue; };
  await future.done;
  return text.trim();
}"""


def execute(page: Any, code: str) -> str:
    """Run code on the notebook's kernel, as another cell does; returns what it prints, or the message of its error."""
    return page.evaluate(EXECUTE, code)
