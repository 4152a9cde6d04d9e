"""The built-in world: small drawn scenes, captions about them, and the models trained on both.

A scene shows one or two icons on a plain background (`scenes`); captions in the style of web alt-text
say what is in it (`captions`). Four of the icon kinds (skull, bomb, dagger, axe) stand in for unsafe
content in every experiment, yet are safe for anyone to look at.
"""
