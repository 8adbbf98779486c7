"""What JAX compiles while something runs."""

import contextlib

import jax


@contextlib.contextmanager
def compilations():
    """Yields a list that gets the name of every program that is compiled, or taken from a cache on disk."""
    names = []

    def listen(event, duration, fun_name="", **_):
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(fun_name)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        jax.monitoring.clear_event_listeners()


@contextlib.contextmanager
def cache_requests():
    """Yields a dictionary of how many programs were asked of the cache on disk ("requests"), and how many it had ("hits")."""
    names = {"/jax/compilation_cache/compile_requests_use_cache": "requests", "/jax/compilation_cache/cache_hits": "hits"}
    counts = dict.fromkeys(names.values(), 0)

    def listen(event, **_):
        if event in names:
            counts[names[event]] += 1

    jax.monitoring.register_event_listener(listen)
    try:
        yield counts
    finally:
        jax.monitoring.clear_event_listeners()
