"""Whether somebody is there to see and use widgets."""

from IPython import get_ipython


def attended() -> bool:
    """Whether a person's front end (JupyterLab or the like) asked for the cell that runs now.

    Only such front ends say which of their cells a request comes from, so that the answer finds its place. papermill,
    nbclient, nbval and nbconvert do not; nor does a plain script, where there is no kernel at all.
    """
    kernel = getattr(get_ipython(), "kernel", None)
    if kernel is None:
        return False
    request = kernel.get_parent("shell") or {}
    return bool(request.get("metadata", {}).get("cellId"))
