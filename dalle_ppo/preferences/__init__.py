"""People's and models' judgement of pictures: the store, how it is filled, and what is learned from it."""
