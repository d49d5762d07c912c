"""Ways to ask about a clip, in English and Chinese, by kind.

`{thing}` is a noun of the scene, `{step}` a step in words, `{asked}` what was asked for. Chinese
has no wordings for what names a step, because steps are spoken in English.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

Kind = Literal[
    "doing", "holding", "holds", "now", "done", "state", "where", "side", "gripper", "caption"
]

CAPTION: Mapping[str, tuple[str, ...]] = {
    "en": (
        "Describe the clip.",
        "What is to be seen?",
        "What happens in the video?",
        "Give a caption.",
        "Tell me in a sentence what happened.",
        "Summarise what the robot did.",
    ),
    "zh": ("描述一下这段视频。", "视频里发生了什么？", "用一句话说说机器人做了什么。"),
}

PLAN_IN_WORDS: tuple[str, ...] = (
    "The task is: '{asked}'. How is it done, step by step?",
    "What are the steps to '{asked}'?",
    "Explain how to do this: '{asked}'.",
)

WORDINGS: Mapping[Kind, Mapping[str, tuple[str, ...]]] = {
    "doing": {
        "en": (
            "What is the robot doing?",
            "What's the arm doing?",
            "What is the robot up to?",
            "What is the robot busy with right now?",
            "Which step is being worked on?",
            "Tell me what the arm is doing now.",
        ),
        "zh": ("机器人在做什么？", "机械臂正在干什么？", "现在在做哪一步？", "它在忙什么？"),
    },
    "holding": {
        "en": (
            "What is the robot holding?",
            "What is in the gripper?",
            "What does the robot have in its hand?",
            "Which object is the arm carrying, if any?",
            "What has been grasped?",
        ),
        "zh": ("机器人拿着什么？", "夹爪里有什么？", "机械臂抓着什么东西？"),
    },
    "holds": {
        "en": (
            "Is the robot holding the {thing}?",
            "Is the {thing} in the gripper?",
            "Has the robot got hold of the {thing}?",
        ),
        "zh": ("机器人拿着{thing}吗？", "{thing}在夹爪里吗？", "机械臂抓住{thing}了吗？"),
    },
    "now": {
        "en": (
            "The robot was asked: '{asked}'. Which step has to be done now?",
            "The task is '{asked}'. What is the first step that is not done yet?",
            "To '{asked}', which step is left to do first?",
        ),
        "zh": (
            "任务是“{asked}”。现在该做哪一步？",
            "要“{asked}”，还没完成的第一步是什么？",
        ),
    },
    "done": {
        "en": (
            "Is this step finished: {step}?",
            "Has the robot managed to {step}?",
            "Did the robot {step}?",
            "Is the step '{step}' over?",
        ),
    },
    "state": {},  # asked in the words of `STATES`
    "where": {
        "en": (
            "Where is the {thing}?",
            "At which pixel is the {thing}?",
            "Point at the {thing}.",
            "Where in the picture is the {thing}?",
        ),
        "zh": ("{thing}在哪里？", "{thing}在图中的什么位置？", "指出{thing}的位置。"),
    },
    "side": {
        "en": (
            "Is the {thing} left or right of the gripper?",
            "On which side of the gripper is the {thing}?",
            "Seen in the picture, is the {thing} to the left or to the right of the gripper?",
        ),
        "zh": ("{thing}在夹爪的左边还是右边？", "{thing}在夹爪的哪一边？"),
    },
    "gripper": {
        "en": (
            "Is the gripper open or closed?",
            "Are the fingers open or closed?",
            "Is the robot's hand open or closed?",
        ),
        "zh": ("夹爪是张开的还是合上的？", "手指是张开还是合拢的？"),
    },
    "caption": CAPTION,
}

STATES: Mapping[str, tuple[str, str]] = {
    "pull(drawer handle)": ("Is the drawer open?", "抽屉开着吗？"),
    "push(drawer handle)": ("Is the drawer shut?", "抽屉关上了吗？"),
    "pull(door handle)": ("Is the door open?", "门开着吗？"),
    "push(door handle)": ("Is the door shut?", "门关上了吗？"),
    "turn(door lock)": ("Is the door locked?", "门锁上了吗？"),
    "turn back(door lock)": ("Is the door unlocked?", "门锁打开了吗？"),
    "slide open(window handle)": ("Is the window open?", "窗户开着吗？"),
    "slide shut(window handle)": ("Is the window shut?", "窗户关上了吗？"),
    "turn on(faucet handle)": ("Is the faucet on?", "水龙头开着吗？"),
    "turn off(faucet handle)": ("Is the faucet off?", "水龙头关了吗？"),
    "press down(button)": ("Is the button pressed?", "按钮按下去了吗？"),
    "press in(button)": ("Is the button pressed in?", "按钮按进去了吗？"),
    "press in(coffee button)": ("Is the coffee button pressed?", "咖啡机的按钮按下了吗？"),
    "press down(handle)": ("Is the handle down?", "手柄压下去了吗？"),
    "pull up(handle)": ("Is the handle up?", "手柄拉起来了吗？"),
    "pull up(lever)": ("Is the lever up?", "拉杆拉起来了吗？"),
    "place(lid, box)": ("Is the box closed?", "盒子盖上了吗？"),
    "place(nut, peg)": ("Is the nut on the peg?", "螺母套在桩上了吗？"),
    "place(puck, shelf)": ("Is the puck on the shelf?", "冰球在架子上了吗？"),
    "move(block, right bin)": ("Is the block in the right bin?", "方块在右边的箱子里吗？"),
    "insert(peg, hole)": ("Is the peg in the hole?", "插销插进孔里了吗？"),
    "insert(block, hole)": ("Is the block in the hole?", "方块放进洞里了吗？"),
    "hit(hammer, nail)": ("Is the nail in?", "钉子钉进去了吗？"),
    "drop(basketball, hoop)": ("Is the basketball in the hoop?", "篮球进框了吗？"),
    "push(mug, coffee machine)": (
        "Is the mug at the coffee machine?",
        "杯子放到咖啡机下面了吗？",
    ),
    "push(ball, goal net)": ("Is the ball in the goal?", "球进门了吗？"),
    "pull(microwave handle)": ("Is the microwave open?", "微波炉开着吗？"),
    "slide(slide cabinet handle)": ("Is the slide cabinet open?", "推拉柜开着吗？"),
    "pull(hinge cabinet handle)": ("Is the hinge cabinet open?", "铰链柜开着吗？"),
    "turn(bottom burner knob)": ("Is the bottom burner on?", "下面的炉头开着吗？"),
    "turn(top burner knob)": ("Is the top burner on?", "上面的炉头开着吗？"),
    "flip(light switch)": ("Is the light on?", "灯开着吗？"),
    "move(kettle, top burner)": ("Is the kettle on the top burner?", "水壶在上面的炉头上吗？"),
}
"""A sub-goal → how to ask whether things are as it leaves them, in English and in Chinese."""

CHINESE: Mapping[str, str] = {
    "ball": "球",
    "basketball": "篮球",
    "block": "方块",
    "bottom burner knob": "下面炉头的旋钮",
    "box": "盒子",
    "button": "按钮",
    "coffee button": "咖啡机按钮",
    "coffee machine": "咖啡机",
    "dial": "转盘",
    "door handle": "门把手",
    "door lock": "门锁",
    "drawer handle": "抽屉把手",
    "faucet handle": "水龙头把手",
    "goal": "目标",
    "goal net": "球门",
    "gripper": "夹爪",
    "hammer": "锤子",
    "handle": "手柄",
    "hinge cabinet handle": "铰链柜把手",
    "hole": "孔",
    "hoop": "篮筐",
    "kettle": "水壶",
    "lever": "拉杆",
    "lid": "盖子",
    "light switch": "灯的开关",
    "microwave handle": "微波炉把手",
    "mug": "杯子",
    "nail": "钉子",
    "nut": "螺母",
    "peg": "插销",
    "plate": "盘子",
    "puck": "冰球",
    "right bin": "右边的箱子",
    "shelf": "架子",
    "slide cabinet handle": "推拉柜把手",
    "stick": "棍子",
    "table edge": "桌边",
    "thermos": "保温瓶",
    "top burner": "上面的炉头",
    "top burner knob": "上面炉头的旋钮",
    "window handle": "窗户把手",
}
"""A scene's noun in Chinese; what is not here is asked for in English."""
