"""Records made here: from rollouts, whose truth is recorded, or from narrated videos and a model.

    moments.py      an episode's labels → the moments of it that are worth a record
    rollouts.py     moments → records; selection.py: so many of them, of every kind and task
    questions.py    verbs, nouns and places → questions with their answers
    narrations.py   Ego4D's narration.json → what the wearer does, and when
    ego4d.py        narrations, videos and a language model's answers → records
    prompts.py      the prompt templates, and what an answer to them must hold
    generators.py   who answers: a local model; answers are kept. endpoint.py: a server
    cutting.py      pictures → a clip's file, once
    drafts.py       a record before it is scored, and where it comes from

`embodied.egocot.filter` scores them and drops what does not fit its caption; `embodied.cli
.build_egocot` puts it together.
"""
