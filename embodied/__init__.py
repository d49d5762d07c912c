"""The agent: told in words, acts in MuJoCo. This is the map of its data path.

    task text ────────────────────────────┐
                                          ▼
    frames ─1─▶ Clip ─2─▶ vision tokens ─3─▶ embodied tokens ─4─▶ Plan: thought + sub-goals
                             │                                      │ current sub-goal
                             └──────────▶ 5 former again ◀──────────┘
                                             │ z_instance, z_global, robot state
                                             ▼
                                        6 policy ─▶ action chunk ─▶ 7 simulator ─▶ frames …
                                                                          │
    plan anew, with what was learnt ◀── failed ── 8 monitor ◀─────────────┘── done ─▶ next sub-goal

    1  video.py            frames → Clip
    2  model/vision.py     Clip → vision tokens: a frozen ViT
    3  model/former.py     vision tokens + words → embodied tokens: the Embodied-former
    4  model/planner.py    embodied tokens + prompt → plan or verdict: a frozen LLM with an adapter
                           (llm.py the adapter, plan.py the plan language, decoding.py the grammar,
                           verdict_head.py, place_head.py and answer_head.py: small heads beside it)
    5  model/features.py   (frame, sub-goal) → z_instance, z_global
    6  policies/           features + robot state → action chunk
    7  sims/               MuJoCo tasks behind gymnasium
    8  agent/monitor.py    when to look, and what to make of the verdict
    9  agent/agent.py      perceive, plan, act, verify, replan; agent/rollout.py runs an episode

Importing this package imports nothing heavy.
"""
