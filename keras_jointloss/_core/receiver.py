"""Finds which public class or function received an argument, for the message of an error."""

import inspect

_PACKAGE = __name__.partition(".")[0]
#: The parts whose classes without a config no user creates.
_INNER = (f"{_PACKAGE}.joint.", f"{_PACKAGE}.terms.")


def receiver_of_arguments() -> str:
    """Returns the name of the innermost public class of the package that is running.

    If only functions are, that of the outermost one; `""` outside of the package. Helpers are not
    public.
    """
    found, frame = "", inspect.currentframe()
    while frame is not None:
        if frame.f_globals.get("__name__", "").startswith(_PACKAGE):
            owner = frame.f_locals.get("self", frame.f_locals.get("cls"))
            owner = owner if isinstance(owner, type) else type(owner)
            module = f"{getattr(owner, '__module__', '')}."
            is_helper = module.startswith(_PACKAGE) and (
                "._" in module or (module.startswith(_INNER) and not hasattr(owner, "get_config"))
            )
            if owner is not type(None) and not is_helper and not owner.__name__.startswith("_"):
                return owner.__name__
            name = frame.f_code.co_name
            found = found if name.startswith(("_", "<")) else name
        frame = frame.f_back
    return found
