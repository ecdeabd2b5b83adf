//! The whole layer against images that nobody here wrote: made by mke2fs with many feature sets, filled by mke2fs and by
//! the kernel, compared with dumpe2fs, debugfs, the kernel's stat, and (what we wrote) e2fsck.

mod fill;
mod image;
mod walk;
mod write;

use image::{Image, VARIANTS};

#[test]
fn what_mke2fs_makes() {
    for variant in VARIANTS {
        let Some(image) = Image::make(variant, None) else {
            return;
        };
        walk::check_everything(&image);
        image.check_against_dumpe2fs();
    }
}

#[test]
fn what_mke2fs_fills_and_e2fsck_indexes() {
    let source = tempfile::tempdir().unwrap();
    fill::fill(source.path(), 0);
    for variant in VARIANTS {
        let Some(image) = Image::make(variant, Some(source.path())) else {
            return;
        };
        image.e2fsck(&["-fyD"]);
        let walked = walk::check_everything(&image);
        image.check_against_dumpe2fs();
        assert!(walked.names > 3000, "{}: {walked:?}", variant.name);
        if variant.indexed {
            assert!(walked.index_blocks > 0, "{}: {walked:?}", variant.name);
        }
    }
}

#[test]
fn what_the_kernel_writes() {
    for variant in VARIANTS {
        let Some(image) = Image::make(variant, None) else {
            return;
        };
        let Some(facts) = image.with_mount(|root| {
            fill::fill(root, 1);
            fill::facts(root)
        }) else {
            return;
        };
        let walked = walk::check_everything(&image);
        image.check_against_dumpe2fs();
        fill::compare(&image, &facts, &variant);
        if variant.indexed {
            assert!(walked.index_blocks > 1, "{}: {walked:?}", variant.name);
        }
        if variant.extents {
            assert!(walked.extent_blocks > 1, "{}: {walked:?}", variant.name);
        }
        assert!(walked.attribute_blocks > 0, "{}: {walked:?}", variant.name);
    }
}

#[test]
fn what_we_write() {
    for variant in VARIANTS {
        let Some(image) = Image::make(variant, None) else {
            return;
        };
        write::change_by_hand(&image);
        image.e2fsck(&["-fn"]);
        walk::check_everything(&image);
        write::read_back(&image);
    }
}
