"""Masks in the forms that other programs take: runs and COCO RLE, polygons, pictures, labelme, supervision."""
