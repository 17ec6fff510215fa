"""A rule whose output is a directory (a tree artifact)."""

def _tree_impl(ctx):
    out = ctx.actions.declare_directory(ctx.label.name)
    ctx.actions.run_shell(
        outputs = [out],
        inputs = ctx.files.srcs,
        command = "\n".join([
            "set -eu",
            "mkdir -p {0}/a/b {0}/empty".format(out.path),
            "for i in 1 2 3; do echo file $i > {}/a/b/$i.txt; done".format(out.path),
            "cat {} > {}/all.txt".format(" ".join([f.path for f in ctx.files.srcs]), out.path),
        ]),
    )
    return [DefaultInfo(files = depset([out]))]

tree = rule(
    implementation = _tree_impl,
    attrs = {"srcs": attr.label_list(allow_files = True)},
)
