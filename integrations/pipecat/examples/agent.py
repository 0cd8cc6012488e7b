# LIPSYNC_URL=ws://… DEEPGRAM_API_KEY=… OPENAI_API_KEY=… python agent.py, then open what it prints.
import os

from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.worker import PipelineWorker
from pipecat.processors.aggregators.llm_context import LLMContext
from pipecat.processors.aggregators.llm_response_universal import LLMContextAggregatorPair
from pipecat.runner.run import main
from pipecat.runner.utils import create_transport
from pipecat.services.deepgram.stt import DeepgramSTTService
from pipecat.services.openai.llm import OpenAILLMService
from pipecat.services.openai.tts import OpenAITTSService
from pipecat.transports.base_transport import TransportParams
from pipecat.workers.runner import WorkerRunner
from pipecat_lipsync_fast import LipsyncFastVideoService

ON = {"audio_in_enabled": True, "audio_out_enabled": True, "video_out_enabled": True}
SIZE = {"video_out_width": 1280, "video_out_height": 720}


async def bot(args):
    transport = await create_transport(args, {"webrtc": lambda: TransportParams(**ON, **SIZE)})
    heard, said = LLMContextAggregatorPair(LLMContext([{"role": "system", "content": "Be brief."}]))
    stt = DeepgramSTTService(api_key=os.environ["DEEPGRAM_API_KEY"])
    voice = [OpenAILLMService(), OpenAITTSService()]
    face = LipsyncFastVideoService(url=os.environ["LIPSYNC_URL"], max_width=1280)
    steps = [transport.input(), stt, heard, *voice, face, transport.output(), said]
    runner = WorkerRunner(handle_sigint=args.handle_sigint)
    await runner.add_workers(PipelineWorker(Pipeline(steps)))
    await runner.run()


if __name__ == "__main__":
    main()
