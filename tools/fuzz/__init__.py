"""Feed damaged input to Aviary for a bounded time, and check what it must keep: `python -m tools.fuzz`.

    mutations.py   bytes and JSON, damaged by a random generator
    inputs.py      what is damaged: audio in many containers, payloads, forms
    targets.py     the cases of each target, and what must hold for the response
    session.py     one engine behind the handler and the HTTP application, and what must hold between cases

    containers     damaged files, as paths and data: URIs, through the Runpod handler and its decoding processes
    payloads       damaged payloads and JSON bodies, through `unwrap`, `parse` and the HTTP application
    forms          damaged multipart forms, through the HTTP application

A case depends on the seed, its target and its number only, so each case can be repeated alone. What must hold: no
exception, no hang, no internal error, strict JSON, results in the order of the inputs, intact inputs unaffected,
no file and no process left behind, no descriptor leaked. Models are those of the dry run; decoding is real.
"""
