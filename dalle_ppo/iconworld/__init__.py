"""The built-in world: small drawn scenes, captions about them, and everything trained on the two.

A scene shows one or two icons on a plain background (`scenes`); captions in the manner of web alt-text
say what is in it (`captions`). Four of the icon kinds (skull, bomb, dagger, axe) stand for unsafe
content: they play its part in every experiment and are safe for anyone to look at.
"""
