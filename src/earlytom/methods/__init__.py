"""One file per published method; importing this package registers them."""

from earlytom.method import list_methods, load_method, method_class
from earlytom.methods.earlytom import EarlyTom

__all__ = ["EarlyTom", "list_methods", "load_method", "method_class"]
