from mmreplay.cli.main import main

main()
