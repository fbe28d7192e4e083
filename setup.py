from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="raftd",
    # The version comes from raftd/_version.py.
    use_incremental=True,
    description="A replicated key-value server, and a Raft library, on Twisted",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    author="the raftd authors",
    license="MIT",
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Framework :: Twisted",
        "Intended Audience :: Developers",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3",
        "Topic :: Database",
        "Topic :: System :: Distributed Computing",
        "Typing :: Typed",
    ],
    # twisted.plugins holds the one module that makes `twist` know us; it is no
    # package of ours, and has no __init__.py.
    packages=[*find_packages(include=["raftd", "raftd.*"]), "twisted.plugins"],
    # With this, an editable install puts the checkout itself on the path, where
    # Twisted looks for plugins; without it, setuptools maps single packages.
    package_dir={"": "."},
    package_data={"raftd": ["py.typed"]},
    entry_points={
        "console_scripts": ["raftd = raftd.tap:main", "raftd-rescue = raftd.rescue:main"],
    },
    python_requires=">=3.10",
    install_requires=["twisted", "treq", "incremental", "msgspec", "httptools"],
    extras_require={
        "test": ["hypothesis", "pexpect"],
        "dev": [
            "build",
            "hypothesis",
            "mypy",
            "mypy-zope",
            "pexpect",
            "ruff",
            "schemathesis",
            "towncrier",
            "types-pexpect",
        ],
    },
)
