"""Published layouts of preference data: Pick-a-Pic, HPDv2, ImageReward."""
