from setuptools import find_packages, setup

setup(
    name="raftd",
    use_incremental=True,
    description="Raft consensus for Twisted, and a replicated key-value server",
    packages=[*find_packages(), "twisted.plugins"],
    package_dir={"": "."},
    python_requires=">=3.10",
    install_requires=["twisted", "treq", "incremental", "msgspec", "httptools"],
)
