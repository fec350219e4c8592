"""How a data set is read: folders and zips, images, labels. `training.dataset` puts them together."""
